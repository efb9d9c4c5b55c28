"""What a person reads: the report, comparisons, inspections."""
