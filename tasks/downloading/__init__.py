"""What `download` is made of: addresses, transfers that go on, archives that stay in their folder."""
