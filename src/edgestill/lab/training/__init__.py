"""One loop for teachers and students, on one process or many, that can be stopped anywhere."""
