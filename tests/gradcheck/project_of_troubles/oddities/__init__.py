"""Rules with something odd about them."""
