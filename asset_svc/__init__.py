"""Assets, devices, and their types: what the fleet is made of."""
