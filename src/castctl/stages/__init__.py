"""The stages, one module or package each: read parts, do the work part by part, write parts."""
