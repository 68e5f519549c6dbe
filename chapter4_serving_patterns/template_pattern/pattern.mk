# The Makefile of a rendered service includes this file, and so gets the targets of a pattern. Outside
# this repository it has docker.mk instead.
WITHIN := chapter4_serving_patterns/template_pattern/
include ../../../../pattern.mk
