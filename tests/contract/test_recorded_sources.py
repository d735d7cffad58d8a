"""What manifests record of data: the sources as jobs name them, told apart from their files."""

from cloze_api.source import with_files


def test_files_are_counted_under_the_source_that_a_job_names() -> None:
    """A folder's at any depth, a pattern's, and none of a web server's, whose addresses are no folders."""
    uris = {
        "pvc://mails/2026/": 3,
        "pvc://mails/2026/a.jsonl": None,
        "pvc://mails/2026/may/b.jsonl": None,
        "pvc://mails/2026/may/c.jsonl": None,
        "pvc://mails/2026-test.jsonl": 0,
        "s3://crawl/*/x.txt.gz": 1,
        "s3://crawl/10/x.txt.gz": None,
        "s3://crawl/10/y.txt.gz": 0,
        "https://host/texts": 0,
        "https://host/texts/b": 0,
    }
    assert with_files(uris.keys()) == {uri: files for uri, files in uris.items() if files is not None}


def test_a_source_within_another_hides_neither() -> None:
    """A pattern is never a file; a folder in a folder is a part of that."""
    nested = {"pvc://a/b", "pvc://a/b/*.txt", "pvc://a/b/c", "pvc://a/b/c/d.txt"}
    assert with_files(nested) == {"pvc://a/b": 2, "pvc://a/b/*.txt": 0}
