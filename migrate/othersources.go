package migrate

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// checkOtherSources checks whether the other sources that open old EDEKs have the source's keys. A folder of the wrong
// KMS can be read without an error, but opens no EDEK.
func (e *Engine) checkOtherSources(ctx context.Context, sv *survey) []Check {
	var checks []Check
	for _, other := range e.cfg.Probes.OtherSources {
		checks = append(checks, e.checkOtherSource(ctx, sv, other))
	}
	return checks
}

func (e *Engine) checkOtherSource(ctx context.Context, sv *survey, other Source) Check {
	c := Check{Name: "keys at the other source", Needed: true}
	var absent, differ []string
	n := 0
	for some := range slices.Chunk(sv.items, metadataBatch) {
		names := make([]string, len(some))
		for i := range some {
			names[i] = some[i].listed()
		}
		ms, err := other.Metadata(ctx, names...)
		if err != nil || len(ms) != len(names) {
			c.Status, c.Measured = NotTried, fmt.Sprintf("%s does not list its keys: %v", other.URI(), err)
			return c
		}
		for i, m := range ms {
			atSource := sv.atSource[n+i]
			switch {
			case atSource == nil: // the report has the reason below the key
			case m == nil:
				absent = append(absent, names[i])
			case !m.Created.Equal(atSource.Created) || m.Versions != atSource.Versions:
				differ = append(differ, names[i])
			}
		}
		n += len(some)
	}
	if len(absent)+len(differ) == 0 {
		c.Measured = fmt.Sprintf("%s has the %d keys of the source, with the same metadata", other.URI(), n)
		return c
	}
	var parts []string
	for what, list := range map[string][]string{"lacks": absent,
		"has, with another time or number of versions,": differ} {
		if len(list) > 0 {
			parts = append(parts, fmt.Sprintf("%s %d%s", what, len(list), inBrackets(list)))
		}
	}
	slices.Sort(parts)
	// A source that numbers its versions is not a Key Trustee KMS, and may have keys that the other source lacks.
	if c.Status = Failure; sv.naming == numbered {
		c.Status = Warning
	}
	c.Measured = fmt.Sprintf("%s %s of the %d keys of the source", other.URI(), strings.Join(parts, " and "), n)
	c.Cure = "the folder seems to be that of another KMS, or to be incomplete: copy .keytrustee and kts-site.xml " +
		"from a host of the KMS that is the source (steps 1 and 2 of the procedure); otherwise old EDEKs of " +
		"these keys open only as long as that KMS runs"
	return c
}
