# Copied from chapter4_serving_patterns/asynchronous_pattern/app/row.py
"""Says what a row is that the model takes: how many numbers, and between which bounds."""

# The pixels of an image of 8 x 8, line by line.
FEATURES = 64
# Black and white. Far beyond them the model has no answer: it computes infinity minus infinity.
LOWEST = 0.0
HIGHEST = 16.0
