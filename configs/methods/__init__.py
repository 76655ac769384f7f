"""Published methods, each a row of parts."""
