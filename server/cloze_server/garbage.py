"""Python's search for garbage in cycles, kept off what lives for as long as the server does."""

import gc


def set_aside() -> None:
    """Look at everything once more, and then only at what comes later: a loaded model is a hundred thousand objects.

    To be called again when another model was loaded, so that the one before it, set aside too, is found.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
