"""Image classification: data sets, small classifiers, and their accuracy."""
