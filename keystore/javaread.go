package keystore

import (
	"encoding/binary"
	"fmt"
)

// Limits of a serialised Java object. The objects of a keystore have a depth of three, ten handles and at most four
// fields.
const (
	maxJavaDepth   = 16
	maxJavaHandles = 128
	maxJavaFields  = 16
	maxJavaArray   = 1 << 20 // bytes; one array has all of Hadoop's metadata with its attributes
)

// Java Object Serialization Specification, 6.4.2.
const (
	javaMagic   = 0xaced
	javaVersion = 5

	tcNull          = 0x70
	tcReference     = 0x71
	tcClassDesc     = 0x72
	tcObject        = 0x73
	tcString        = 0x74
	tcArray         = 0x75
	tcBlockData     = 0x77
	tcEndBlockData  = 0x78
	tcBlockDataLong = 0x7a
	tcEnum          = 0x7e

	scWriteMethod  = 0x01
	scSerializable = 0x02
	scEnum         = 0x10

	baseWireHandle = 0x7e0000
)

// The allowed classes in a keystore. Java has the same filter (jceks.key.serialFilter), and Hadoop adds its own class
// to it.
const (
	classSealedForProtector = "com.sun.crypto.provider.SealedObjectForKeyProtector"
	classSealed             = "javax.crypto.SealedObject"
	classByteArray          = "[B"
	classSecretKeySpec      = "javax.crypto.spec.SecretKeySpec"
	classKeyRep             = "java.security.KeyRep"
	classKeyRepType         = "java.security.KeyRep$Type"
	classEnum               = "java.lang.Enum"
	classHadoopMetadata     = "org.apache.hadoop.crypto.key.JavaKeyStoreProvider$KeyMetadata"
)

func javaClassAllowed(name string) bool {
	switch name {
	case classSealedForProtector, classSealed, classByteArray, classSecretKeySpec, classKeyRep,
		classKeyRepType, classEnum, classHadoopMetadata:
		return true
	}
	return false
}

type javaField struct {
	kind byte // '[' or 'L'; no class of the list has a field of a primitive type
	name string
}

type javaClass struct {
	name   string
	flags  byte
	fields []javaField
	super  *javaClass
}

// javaObject is an object or, with value set and no fields, an enum constant.
type javaObject struct {
	class  *javaClass
	fields map[string]any // string, []byte, *javaObject or nil, by field name
	blocks []byte         // block data of its class's writeObject
	value  string
}

// javaReader reads one object from the start of b. It allocates no more bytes than b has left.
type javaReader struct {
	b       []byte
	off     int
	depth   int
	handles []any
}

// readJavaObject returns the object at the start of b, and its length in bytes.
func readJavaObject(b []byte) (*javaObject, int, error) {
	r := &javaReader{b: b}
	magic, err := r.take(4)
	if err != nil {
		return nil, 0, err
	}
	if binary.BigEndian.Uint16(magic) != javaMagic || binary.BigEndian.Uint16(magic[2:]) != javaVersion {
		r.off = 0
		return nil, 0, r.errorf("begins with % x, not with ac ed 00 05", magic)
	}
	v, err := r.content()
	if err != nil {
		return nil, r.off, err
	}
	o, ok := v.(*javaObject)
	if !ok || o.value != "" {
		return nil, r.off, r.errorf("contains no object")
	}
	return o, r.off, nil
}

func (r *javaReader) errorf(format string, args ...any) error {
	return &FormatError{Format: "Java serialisation", Offset: r.off, What: fmt.Sprintf(format, args...)}
}

func (r *javaReader) take(n int) ([]byte, error) {
	if n > len(r.b)-r.off {
		return nil, r.errorf("ends too early: %d bytes are missing", n-(len(r.b)-r.off))
	}
	s := r.b[r.off : r.off+n]
	r.off += n
	return s, nil
}

func (r *javaReader) byte() (byte, error) {
	s, err := r.take(1)
	if err != nil {
		return 0, err
	}
	return s[0], nil
}

func (r *javaReader) uint16() (int, error) {
	s, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return int(binary.BigEndian.Uint16(s)), nil
}

func (r *javaReader) uint32() (uint32, error) {
	s, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(s), nil
}

func (r *javaReader) utf() (string, error) {
	n, err := r.uint16()
	if err != nil {
		return "", err
	}
	s, err := r.take(n)
	if err != nil {
		return "", err
	}
	text, err := decodeMUTF8(s)
	if err != nil {
		return "", r.errorf("%v", err)
	}
	return text, nil
}

// handle gives v the next handle, by which later parts of the stream may refer to v, and returns its number.
func (r *javaReader) handle(v any) (int, error) {
	if len(r.handles) == maxJavaHandles {
		return 0, r.errorf("more than %d objects", maxJavaHandles)
	}
	r.handles = append(r.handles, v)
	return len(r.handles) - 1, nil
}

// reference reads a handle, and returns the object or class with that handle.
func (r *javaReader) reference() (any, error) {
	h, err := r.uint32()
	if err != nil {
		return nil, err
	}
	if h < baseWireHandle || h-baseWireHandle >= uint32(len(r.handles)) {
		return nil, r.errorf("reference to object %#x, which does not exist", h)
	}
	return r.handles[h-baseWireHandle], nil
}

// content reads an object, array, string, enum constant, reference or null.
func (r *javaReader) content() (any, error) {
	if r.depth++; r.depth > maxJavaDepth {
		return nil, r.errorf("nested deeper than %d", maxJavaDepth)
	}
	defer func() { r.depth-- }()
	tag, err := r.byte()
	if err != nil {
		return nil, err
	}
	switch tag {
	case tcNull:
		return nil, nil
	case tcReference:
		v, err := r.reference()
		if _, isClass := v.(*javaClass); isClass {
			return nil, r.errorf("reference to a class where an object is expected")
		}
		return v, err
	case tcString:
		s, err := r.utf()
		if err != nil {
			return nil, err
		}
		_, err = r.handle(s)
		return s, err
	case tcArray:
		return r.byteArray()
	case tcEnum:
		return r.enum()
	case tcObject:
		return r.object()
	}
	r.off--
	return nil, r.errorf("unexpected tag %#02x", tag)
}

func (r *javaReader) byteArray() (any, error) {
	class, err := r.classDesc()
	if err != nil {
		return nil, err
	}
	if class == nil || class.name != classByteArray {
		return nil, r.errorf("array of another type than byte")
	}
	h, err := r.handle(nil)
	if err != nil {
		return nil, err
	}
	n, err := r.uint32()
	if err != nil {
		return nil, err
	}
	if n > maxJavaArray {
		return nil, r.errorf("byte array of %d bytes, at most %d are allowed", n, maxJavaArray)
	}
	v, err := r.take(int(n))
	if err != nil {
		return nil, err
	}
	r.handles[h] = v
	return v, nil
}

func (r *javaReader) enum() (any, error) {
	class, err := r.classDesc()
	if err != nil {
		return nil, err
	}
	if class == nil || class.flags&scEnum == 0 {
		return nil, r.errorf("enum constant without an enum class")
	}
	o := &javaObject{class: class}
	if _, err := r.handle(o); err != nil {
		return nil, err
	}
	v, err := r.content()
	if err != nil {
		return nil, err
	}
	name, ok := v.(string)
	if !ok || name == "" {
		return nil, r.errorf("enum constant without a name")
	}
	o.value = name
	return o, nil
}

func (r *javaReader) object() (any, error) {
	class, err := r.classDesc()
	if err != nil {
		return nil, err
	}
	if class == nil {
		return nil, r.errorf("object without a class")
	}
	o := &javaObject{class: class, fields: make(map[string]any)}
	if _, err := r.handle(o); err != nil {
		return nil, err
	}
	var classes []*javaClass // superclass last
	for c := class; c != nil; c = c.super {
		classes = append(classes, c)
	}
	for i := len(classes) - 1; i >= 0; i-- {
		if err := r.classData(o, classes[i]); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (r *javaReader) classData(o *javaObject, c *javaClass) error {
	if c.flags&scSerializable == 0 || c.flags&scEnum != 0 {
		return r.errorf("object of class %s, which is not serialisable", c.name)
	}
	// A writeObject that does not call defaultWriteObject, such as Hadoop's, leaves out the declared fields. Here
	// all fields are objects, and their tags differ from the tags of block data.
	if c.flags&scWriteMethod == 0 || !r.atBlockData() {
		for _, f := range c.fields {
			v, err := r.content()
			if err != nil {
				return err
			}
			o.fields[f.name] = v
		}
	}
	if c.flags&scWriteMethod == 0 {
		return nil
	}
	for {
		tag, err := r.byte()
		if err != nil {
			return err
		}
		var n uint32
		switch tag {
		case tcEndBlockData:
			return nil
		case tcBlockData:
			b, err := r.byte()
			if err != nil {
				return err
			}
			n = uint32(b)
		case tcBlockDataLong:
			if n, err = r.uint32(); err != nil {
				return err
			}
		default:
			r.off--
			return r.errorf("unexpected tag %#02x in the data of class %s", tag, c.name)
		}
		if n > maxJavaArray || len(o.blocks)+int(n) > maxJavaArray {
			return r.errorf("class %s wrote more than %d bytes", c.name, maxJavaArray)
		}
		b, err := r.take(int(n))
		if err != nil {
			return err
		}
		o.blocks = append(o.blocks, b...)
	}
}

func (r *javaReader) atBlockData() bool {
	if r.off == len(r.b) {
		return false
	}
	t := r.b[r.off]
	return t == tcBlockData || t == tcBlockDataLong || t == tcEndBlockData
}

// classDesc reads a class description, a reference to one, or null.
func (r *javaReader) classDesc() (*javaClass, error) {
	if r.depth++; r.depth > maxJavaDepth {
		return nil, r.errorf("nested deeper than %d", maxJavaDepth)
	}
	defer func() { r.depth-- }()
	tag, err := r.byte()
	if err != nil {
		return nil, err
	}
	switch tag {
	case tcNull:
		return nil, nil
	case tcReference:
		v, err := r.reference()
		if err != nil {
			return nil, err
		}
		c, ok := v.(*javaClass)
		if !ok {
			return nil, r.errorf("reference to an object where a class is expected")
		}
		return c, nil
	case tcClassDesc:
		return r.newClass()
	}
	r.off--
	return nil, r.errorf("unexpected tag %#02x where a class is expected", tag)
}

func (r *javaReader) newClass() (*javaClass, error) {
	c := &javaClass{}
	var err error
	if c.name, err = r.utf(); err != nil {
		return nil, err
	}
	if !javaClassAllowed(c.name) {
		return nil, r.errorf("class %.100q, which is not allowed in a key entry", c.name)
	}
	if _, err = r.take(8); err != nil { // skip serialVersionUID: the name identifies the class
		return nil, err
	}
	// The handle refers to the class only after the class is complete. So a class that refers to itself as its
	// superclass is a bad reference, and not an endless loop.
	h, err := r.handle(nil)
	if err != nil {
		return nil, err
	}
	if c.flags, err = r.byte(); err != nil {
		return nil, err
	}
	if c.fields, err = r.fieldDescs(); err != nil {
		return nil, err
	}
	tag, err := r.byte()
	if err != nil {
		return nil, err
	}
	if tag != tcEndBlockData {
		r.off--
		return nil, r.errorf("class %s is annotated (tag %#02x)", c.name, tag)
	}
	if c.super, err = r.classDesc(); err != nil {
		return nil, err
	}
	r.handles[h] = c
	return c, nil
}

func (r *javaReader) fieldDescs() ([]javaField, error) {
	n, err := r.uint16()
	if err != nil {
		return nil, err
	}
	if n > maxJavaFields {
		return nil, r.errorf("class of %d fields, at most %d are allowed", n, maxJavaFields)
	}
	fields := make([]javaField, n)
	for i := range fields {
		f := &fields[i]
		if f.kind, err = r.byte(); err != nil {
			return nil, err
		}
		if f.kind != '[' && f.kind != 'L' {
			return nil, r.errorf("field of type %q", f.kind)
		}
		if f.name, err = r.utf(); err != nil {
			return nil, err
		}
		v, err := r.content() // skip the type's name: the value shows its type
		if err != nil {
			return nil, err
		}
		if _, ok := v.(string); !ok {
			return nil, r.errorf("field %.100q has no type", f.name)
		}
	}
	return fields, nil
}
