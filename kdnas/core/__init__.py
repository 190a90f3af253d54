"""Pure records and arithmetic: numpy and the standard library only."""
