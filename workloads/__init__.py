"""What can be trained: one folder a workload, none of which knows another."""
