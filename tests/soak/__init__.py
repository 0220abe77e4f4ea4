"""`make soak`: runs that are killed again and again must end as those that nothing disturbed."""
