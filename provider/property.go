package provider

import (
	"fmt"
	"strconv"
	"strings"

	"claviger"
)

// text returns a property's value, and "" if the property is not set.
func (e Env) text(name string) string {
	if e.Get == nil {
		return ""
	}
	v, _ := e.Get(name)
	return strings.TrimSpace(v)
}

// Bool reads true or false, in upper or lower case. It returns fallback if the property is not set. The error is a
// *claviger.PropertyError.
func (e Env) Bool(name string, fallback bool) (bool, error) {
	v := e.text(name)
	switch strings.ToLower(v) {
	case "":
		return fallback, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, &claviger.PropertyError{Name: name, Value: v, Want: "it must be true or false"}
}

// Int reads a whole number between lo and hi. It returns fallback if the property is not set. The error is a
// *claviger.PropertyError.
func (e Env) Int(name string, fallback, lo, hi int) (int, error) {
	v := e.text(name)
	if v == "" {
		return fallback, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi {
		want := fmt.Sprintf("it must be a whole number from %d to %d", lo, hi)
		return 0, &claviger.PropertyError{Name: name, Value: v, Want: want, Err: err}
	}
	return n, nil
}
