"""Who answers for the teacher: the module itself, an exported one, or answers that were kept."""
