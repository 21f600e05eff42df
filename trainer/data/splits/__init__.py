"""What the splits of a data set are, found on their storage without TensorFlow."""
