package sql

type tracer struct{}

func (t *tracer) eval(e *env, x expr) value { return x.eval(e) }
