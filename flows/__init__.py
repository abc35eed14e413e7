"""When stages run: Prefect, and nowhere else."""
