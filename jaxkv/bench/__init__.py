"""Times of single ops and of whole models, each against a floor and a peer."""
