"""What a query reads at decode."""
