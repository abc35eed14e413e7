"""The stages: one file is one stage is one DVC stage is one folder under data/."""
