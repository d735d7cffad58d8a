"""What a model must be compared with: scikit-learn's TF-IDF with logistic regression, and the most frequent tag."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spam_f1(folder: Path) -> float:
    """F1 of the class `spam`: word 1- and 2-grams, TF-IDF, logistic regression with the library's defaults."""
    train, test = read(folder / "spam-train.jsonl"), read(folder / "spam-test.jsonl")
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = LogisticRegression(max_iter=1000)
    model.fit(vectorizer.fit_transform(row["text"] for row in train), [row["label"] for row in train])
    predicted = model.predict(vectorizer.transform(row["text"] for row in test))
    return float(f1_score([row["label"] for row in test], predicted, pos_label="spam"))


def most_frequent_tag_accuracy(folder: Path) -> float:
    """Accuracy over words: each gets its most frequent tag in training, an unknown one the most frequent of all."""
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for row in read(folder / "pos-train.jsonl"):
        for word, tag in zip(row["tokens"], row["labels"], strict=True):
            tags[word.lower()][tag] += 1
    best = {word: counts.most_common(1)[0][0] for word, counts in tags.items()}
    fallback = sum(tags.values(), Counter()).most_common(1)[0][0]
    right = total = 0
    for row in read(folder / "pos-test.jsonl"):
        for word, tag in zip(row["tokens"], row["labels"], strict=True):
            right += best.get(word.lower(), fallback) == tag
            total += 1
    return right / total
