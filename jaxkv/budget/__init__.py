"""How many slots each head gets: ints that sum to the row's budget."""
