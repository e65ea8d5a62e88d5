package terminal

import (
	"encoding"
	"encoding/json"
	"reflect"
	"strings"
)

// withLists returns a copy of v for JSON. Nil slices and nil maps, at any depth, are empty ones in the copy, so that
// JSON shows [] and {} instead of null. Nil pointers, nil interfaces and nil byte slices stay nil. A value that
// marshals itself is not changed.
func withLists(v any) any {
	if v == nil {
		return nil
	}
	return filled(reflect.ValueOf(v)).Interface()
}

func filled(v reflect.Value) reflect.Value {
	if hasOwnForm(v.Type()) {
		return v
	}
	switch v.Kind() {
	case reflect.Pointer:
		return filledPointer(v)
	case reflect.Interface:
		if v.IsNil() {
			return v
		}
		return filled(v.Elem())
	case reflect.Struct:
		return filledStruct(v)
	case reflect.Slice:
		return filledSlice(v)
	case reflect.Map:
		to := reflect.MakeMapWithSize(v.Type(), v.Len())
		for _, key := range v.MapKeys() {
			to.SetMapIndex(key, filled(v.MapIndex(key)))
		}
		return to
	}
	return v
}

// hasOwnForm reports whether values of a type marshal themselves.
func hasOwnForm(t reflect.Type) bool {
	for _, form := range []reflect.Type{reflect.TypeFor[json.Marshaler](), reflect.TypeFor[encoding.TextMarshaler]()} {
		if t.Implements(form) || reflect.PointerTo(t).Implements(form) {
			return true
		}
	}
	return false
}

func filledPointer(v reflect.Value) reflect.Value {
	if v.IsNil() {
		return v
	}
	to := reflect.New(v.Type().Elem())
	to.Elem().Set(filled(v.Elem()))
	return to
}

func filledStruct(v reflect.Value) reflect.Value {
	to := reflect.New(v.Type()).Elem()
	to.Set(v)
	for i := range v.NumField() {
		field := v.Type().Field(i)
		// A nil slice is left out by omitzero, an empty one is not.
		if !field.IsExported() || strings.Contains(field.Tag.Get("json"), ",omitzero") && v.Field(i).IsZero() {
			continue
		}
		to.Field(i).Set(filled(v.Field(i)))
	}
	return to
}

func filledSlice(v reflect.Value) reflect.Value {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		return v
	}
	to := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
	for i := range v.Len() {
		to.Index(i).Set(filled(v.Index(i)))
	}
	return to
}
