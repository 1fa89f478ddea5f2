"""The batch door: rides database → scoring job → predictions database."""
