"""The stream's consumer beside others."""
