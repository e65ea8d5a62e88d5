package hadoopconf

import (
	"errors"
	"fmt"

	"claviger"
)

// Refuse returns the error for a property that is missing, or whose value cannot be used. want describes the right
// value.
func (c *Conf) Refuse(name, want string) error {
	p, set := c.Lookup(name)
	if !set {
		return fmt.Errorf("property %s is not set: %s", name, want)
	}
	v, _ := c.Get(name)
	return &ValueError{Property: p, Value: v, Want: want}
}

// RefuseFor returns the error for a property whose value cannot be used because of err.
func (c *Conf) RefuseFor(name string, err error, want string, args ...any) error {
	bad := claviger.BadProperty(name, err, want, args...)
	if placed := c.WithPlace(bad); placed != nil {
		return placed
	}
	return bad
}

// BadFile returns the error for a file that a property names and that cannot be used. cure may be empty.
func (c *Conf) BadFile(name string, err error, cure string) error {
	if placed := c.WithPlace(err); placed != nil {
		return placed // the error names another property, such as the file's password
	}
	if cure != "" {
		cure = "; " + cure
	}
	return c.RefuseFor(name, err, "%v%s", err, cure)
}

// WithPlace adds file, line and value to an error of another package about a property. It returns nil if err is not
// about a property, or names its line already.
func (c *Conf) WithPlace(err error) error {
	var placed *ValueError
	var bad *claviger.PropertyError
	if errors.As(err, &placed) || !errors.As(err, &bad) {
		return nil
	}
	p, set := c.Lookup(bad.Name)
	if !set {
		return bad
	}
	v, _ := c.Get(bad.Name)
	return &ValueError{Property: p, Value: v, Want: bad.Want, Err: bad.Err}
}
