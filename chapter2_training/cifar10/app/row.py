"""Says what a row is that the model takes: how many numbers, and between which bounds."""

# The red, then the green, then the blue values of 32 rows of 32 pixels, as in CIFAR-10's files.
FEATURES = 3 * 32 * 32
LOWEST = 0
HIGHEST = 255
