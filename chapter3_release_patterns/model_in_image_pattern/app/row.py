# Copied from chapter4_serving_patterns/web_single_pattern/app/row.py
"""Says what a row is that the model takes: how many numbers, and between which bounds."""

FEATURES = 4
# The model computes in float32, whose largest number this is: beyond it, it would see infinity.
HIGHEST = 3.4028234663852886e38
LOWEST = -HIGHEST
