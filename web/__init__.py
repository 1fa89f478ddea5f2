"""What only the web service needs."""
