"""The next step: a letter goes to the lane of the first figure of its postcode."""

LANES = {
    **dict.fromkeys("012", "north"),
    **dict.fromkeys("345", "east"),
    **dict.fromkeys("67", "south"),
    **dict.fromkeys("89", "west"),
}
# A letter without a prediction.
BY_HAND = "by hand"


def lane_of(label: str) -> str:
    """Returns the lane for a predicted figure."""
    return LANES.get(label, BY_HAND)
