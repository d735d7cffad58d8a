"""Raw text and labelled examples, turned into batches that are functions of seed and position alone."""
