package pkcs11

import "claviger/trace"

// spanOf begins the step C_Encrypt of all traced requests in a batch; nil if none is traced.
func spanOf(batch []part) *trace.Span {
	var spans []*trace.Span
	for _, p := range batch {
		if p.w.span != nil {
			spans = append(spans, p.w.span)
		}
	}
	return trace.Shared("C_Encrypt", spans)
}

// endSpan ends the step of a call.
func endSpan(span *trace.Span, callers, blocks int, err error) {
	if span == nil {
		return
	}
	span.Number(trace.Callers, callers)
	span.Number(trace.Blocks, blocks)
	span.Word(trace.Result, ResultName(err))
	if err != nil {
		span.Fail(ResultName(err))
	}
	span.End()
}
