package hadoopconf

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// lookup returns a property's value, trimmed and expanded, for a typed getter. The second result is false if the
// property is not set. It is true for a property that is set to "", so that the getter returns an error ("" is not a
// number), and not the default.
func (c *Conf) lookup(name string) (string, bool) {
	_, ok := c.props[name]
	v, _ := c.Get(name)
	return v, ok
}

func (c *Conf) bad(name, value, want string) error {
	return &ValueError{Property: c.props[name], Value: value, Want: want}
}

// Int reads a whole number from lo to hi. It returns 0 if the property is not set; known properties have defaults (see
// LoadKMS). As in Hadoop, a hexadecimal number (0x..) is allowed.
func (c *Conf) Int(name string, lo, hi int64) (int64, error) {
	v, ok := c.lookup(name)
	if !ok {
		return 0, nil
	}
	base, digits := 10, v
	if rest, hex := strings.CutPrefix(strings.ToLower(v), "0x"); hex {
		base, digits = 16, rest
	}
	n, err := strconv.ParseInt(digits, base, 64)
	if err != nil {
		return 0, c.bad(name, v, fmt.Sprintf("it must be a whole number from %d to %d", lo, hi))
	}
	if n < lo || n > hi {
		return 0, c.bad(name, v, fmt.Sprintf("it must be between %d and %d", lo, hi))
	}
	return n, nil
}

// Bool reads true or false, in upper or lower case. Any other value is an error; Hadoop silently uses the default then.
func (c *Conf) Bool(name string) (bool, error) {
	v, ok := c.lookup(name)
	if !ok {
		return false, nil
	}
	switch strings.ToLower(v) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, c.bad(name, v, "it must be true or false")
}

// Float reads a number between lo and hi.
func (c *Conf) Float(name string, lo, hi float64) (float64, error) {
	v, ok := c.lookup(name)
	if !ok {
		return 0, nil
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || math.IsNaN(f) || f < lo || f > hi {
		return 0, c.bad(name, v, "it must be a number between "+plain(lo)+" and "+plain(hi))
	}
	return f, nil
}

// plain writes a number without an exponent.
func plain(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// suffixes are the units of Configuration.getTimeDuration, longest first.
var suffixes = []struct {
	text string
	unit time.Duration
}{
	{"ns", time.Nanosecond}, {"us", time.Microsecond}, {"ms", time.Millisecond},
	{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour},
}

// Duration reads a time: a number, and ns, us, ms, s, m, h or d. Without these letters the number counts in unit. A
// property that Hadoop does not have must have the letters, unless it is 0: a user who writes 7 may mean days, and
// some keys are destroyed when a time is over.
func (c *Conf) Duration(name string, unit time.Duration) (time.Duration, error) {
	v, ok := c.lookup(name)
	if !ok {
		return 0, nil
	}
	d, err := ParseDuration(v, unit)
	if err != nil {
		return 0, c.bad(name, v, err.Error())
	}
	if d != 0 && strings.HasPrefix(name, "claviger.") && strings.Trim(v, "0123456789") == "" {
		return 0, c.bad(name, v, fmt.Sprintf("it must have a unit: %[1]sms, %[1]ss, %[1]sm, %[1]sh or %[1]sd", v))
	}
	return d, nil
}

// ParseDuration reads a time as Duration does. The error describes the right form.
func ParseDuration(text string, unit time.Duration) (time.Duration, error) {
	digits := strings.ToLower(text)
	for _, s := range suffixes {
		if rest, has := strings.CutSuffix(digits, s.text); has {
			digits, unit = strings.TrimSpace(rest), s.unit
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 {
		return 0, errors.New("it must be a time: a whole number, or one followed by ms, s, m, h or d")
	}
	if n > int64(math.MaxInt64/unit) {
		return 0, errors.New("that time is longer than 292 years; make it shorter")
	}
	return time.Duration(n) * unit, nil
}

// Strings reads a list that is separated by commas. It trims the parts, and drops empty ones.
func (c *Conf) Strings(name string) []string {
	v, _ := c.Get(name)
	var out []string
	for _, part := range strings.Split(v, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
