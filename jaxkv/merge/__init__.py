"""What the kept inherit from those that go. Every row here drops them."""
