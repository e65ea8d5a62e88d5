package keystore

import (
	"encoding/binary"
	"errors"
)

// javaWriter writes the three kinds of objects in our keystores, byte for byte as ObjectOutputStream does. It keeps
// its errors for done.
type javaWriter struct {
	b   []byte
	err error
}

func newJavaWriter() *javaWriter { return &javaWriter{b: []byte{0xac, 0xed, 0, javaVersion}} }

func (w *javaWriter) raw(b ...byte) { w.b = append(w.b, b...) }

func (w *javaWriter) utf(s string) {
	b, err := appendMUTF8(w.b, s)
	if err != nil {
		w.err = errors.Join(w.err, err)
		return
	}
	w.b = b
}

func (w *javaWriter) string(s string) {
	w.raw(tcString)
	w.utf(s)
}

func (w *javaWriter) ref(handle uint32) {
	w.raw(tcReference)
	w.b = binary.BigEndian.AppendUint32(w.b, baseWireHandle+handle)
}

// class begins a class description. Its fields and its end must follow.
func (w *javaWriter) class(name string, serialVersionUID uint64, flags byte, fields uint16) {
	w.raw(tcClassDesc)
	w.utf(name)
	w.b = binary.BigEndian.AppendUint64(w.b, serialVersionUID)
	w.raw(flags)
	w.b = binary.BigEndian.AppendUint16(w.b, fields)
}

func (w *javaWriter) field(kind byte, name string) {
	w.raw(kind)
	w.utf(name)
}

// bytes writes the content of a byte array, after its class.
func (w *javaWriter) bytes(v []byte) {
	w.b = binary.BigEndian.AppendUint32(w.b, uint32(len(v)))
	w.b = append(w.b, v...)
}

// byteArrayClass writes the description of the class byte[]. After it, encodeSealed writes only a reference to it.
func (w *javaWriter) byteArrayClass() {
	w.class(classByteArray, 0xacf317f8060854e0, scSerializable, 0)
	w.raw(tcEndBlockData, tcNull)
}

// done returns the written bytes.
func (w *javaWriter) done() ([]byte, error) {
	if w.err == nil && len(w.b) > maxJavaArray {
		return nil, errors.New("key entry is larger than 1 MiB")
	}
	return w.b, w.err
}

const javaStringType = "Ljava/lang/String;"

// encodeSealed writes a SealedObjectForKeyProtector.
func encodeSealed(params, content []byte) ([]byte, error) {
	w := newJavaWriter()
	w.raw(tcObject)
	w.class(classSealedForProtector, 0xcd57ca59e730bb53, scSerializable, 0) // handle 0
	w.raw(tcEndBlockData)
	w.class(classSealed, 0x3e363da6c3b75470, scSerializable, 4) // handle 1
	w.field('[', "encodedParams")
	w.string("[B") // handle 2
	w.field('[', "encryptedContent")
	w.ref(2)
	w.field('L', "paramsAlg")
	w.string(javaStringType) // handle 3
	w.field('L', "sealAlg")
	w.ref(3)
	w.raw(tcEndBlockData, tcNull)
	// The object is handle 4, the class of byte[] 5, the first array 6.
	w.raw(tcArray)
	w.byteArrayClass()
	w.bytes(params)
	w.raw(tcArray)
	w.ref(5)
	w.bytes(content)
	w.string(pbeAlgorithm)
	w.string(pbeAlgorithm)
	return w.done()
}

// encodeSecretKey writes a SecretKeySpec.
func encodeSecretKey(algorithm string, material []byte) ([]byte, error) {
	w := newJavaWriter()
	w.raw(tcObject)
	w.class(classSecretKeySpec, 0x5b470b66e230614d, scSerializable, 2)
	w.field('L', "algorithm")
	w.string(javaStringType)
	w.field('[', "key")
	w.string("[B")
	w.raw(tcEndBlockData, tcNull)
	w.string(algorithm)
	w.raw(tcArray)
	w.byteArrayClass()
	w.bytes(material)
	return w.done()
}

// encodeHadoopMetadata writes a JavaKeyStoreProvider$KeyMetadata. The class declares one field, but never writes it.
// Its writeObject writes the length and the JSON.
func encodeHadoopMetadata(json []byte) ([]byte, error) {
	w := newJavaWriter()
	w.raw(tcObject)
	w.class(classHadoopMetadata, 0x74a7a86e03703593, scSerializable|scWriteMethod, 1)
	w.field('L', "metadata")
	w.string("Lorg/apache/hadoop/crypto/key/KeyProvider$Metadata;")
	w.raw(tcEndBlockData, tcNull)
	block := binary.BigEndian.AppendUint32(nil, uint32(len(json)))
	block = append(block, json...)
	for len(block) > 0 { // ObjectOutputStream writes blocks of at most 1024 bytes
		n := min(len(block), 1024)
		if n < 256 {
			w.raw(tcBlockData, byte(n))
		} else {
			w.raw(tcBlockDataLong)
			w.b = binary.BigEndian.AppendUint32(w.b, uint32(n))
		}
		w.raw(block[:n]...)
		block = block[n:]
	}
	w.raw(tcEndBlockData)
	return w.done()
}

// sealed is the outer object of a secret-key entry.
type sealed struct {
	params  []byte // DER
	content []byte
}

// decodeSealed reads the result of encodeSealed from the start of b, and returns its length, because a keystore
// does not store the length.
func decodeSealed(b []byte) (sealed, int, error) {
	o, n, err := readJavaObject(b)
	if err != nil {
		return sealed{}, n, err
	}
	bad := func(what string) (sealed, int, error) {
		return sealed{}, n, &FormatError{Format: "Java serialisation", Offset: n, What: what}
	}
	if o.class.name != classSealedForProtector && o.class.name != classSealed {
		return bad("object of class " + o.class.name + " where a sealed object is expected")
	}
	var s sealed
	var ok1, ok2 bool
	s.params, ok1 = o.fields["encodedParams"].([]byte)
	s.content, ok2 = o.fields["encryptedContent"].([]byte)
	if !ok1 || !ok2 {
		return bad("sealed object without parameters or content")
	}
	if alg, _ := o.fields["sealAlg"].(string); alg != pbeAlgorithm {
		return bad("object sealed with " + quote(alg) + ", only " + pbeAlgorithm + " is known")
	}
	return s, n, nil
}

// decodeSecret reads the inner object of a secret-key entry: a SecretKeySpec, a KeyRep (which other key classes
// write instead), or Hadoop's metadata.
func decodeSecret(b []byte) (Secret, error) {
	o, n, err := readJavaObject(b)
	if err != nil {
		return Secret{}, err
	}
	bad := func(what string) (Secret, error) {
		return Secret{}, &FormatError{Format: "Java serialisation", Offset: n, What: what}
	}
	if n != len(b) {
		return bad("bytes after the object")
	}
	alg, isString := o.fields["algorithm"].(string)
	switch o.class.name {
	case classSecretKeySpec:
		key, ok := o.fields["key"].([]byte)
		if !ok || !isString {
			return bad("SecretKeySpec without algorithm or key")
		}
		return Secret{Algorithm: alg, Material: append([]byte{}, key...)}, nil
	case classKeyRep:
		key, ok := o.fields["encoded"].([]byte)
		kind, isObject := o.fields["type"].(*javaObject)
		format, _ := o.fields["format"].(string)
		if !ok || !isString || !isObject || kind.value != "SECRET" || format != "RAW" {
			return bad("KeyRep that is not a raw secret key")
		}
		return Secret{Algorithm: alg, Material: append([]byte{}, key...)}, nil
	case classHadoopMetadata:
		if len(o.blocks) < 4 || uint64(binary.BigEndian.Uint32(o.blocks)) != uint64(len(o.blocks)-4) {
			return bad("the length of Hadoop's metadata is wrong")
		}
		return Secret{HadoopMetadata: append([]byte{}, o.blocks[4:]...)}, nil
	}
	return bad("object of class " + o.class.name + " where a key is expected")
}
