"""What `report` is made of: what the stages found, drawn and laid out."""
