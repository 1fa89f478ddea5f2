"""The batch job beside other ways to do it."""
