"""The stream door: rides → predictions."""
