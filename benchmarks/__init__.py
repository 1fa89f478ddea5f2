"""The commands behind the README's figures."""
