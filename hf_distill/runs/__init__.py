"""A recipe goes in, a run folder comes out: the only place that joins the parts."""
