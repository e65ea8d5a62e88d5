package hadoopconf

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"
)

// declaration is what a document may begin with.
var declaration = regexp.MustCompile(`^<\?xml[^>]*\?>`)

// xml11 is the version in a declaration. What XML 1.1 changes are characters that no
// configuration holds; encoding/xml knows 1.0 alone.
var xml11 = regexp.MustCompile(`(version\s*=\s*["'])1\.1(["'])`)

// encodingName is in a declaration, too.
var encodingName = regexp.MustCompile(`\sencoding\s*=\s*["'][^"']*["']`)

// unicodeText returns a document such that the XML reader can read its declaration:
// UTF-16 shows in its first bytes, and becomes UTF-8.
func unicodeText(data []byte) (string, error) {
	var err error
	wide := true
	switch {
	case bytes.HasPrefix(data, []byte{0xfe, 0xff}), bytes.HasPrefix(data, []byte{0xff, 0xfe}):
		data, err = unicode.UTF16(unicode.BigEndian, unicode.ExpectBOM).NewDecoder().Bytes(data)
	case bytes.HasPrefix(data, []byte{0, '<', 0, '?'}):
		data, err = unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM).NewDecoder().Bytes(data)
	case bytes.HasPrefix(data, []byte{'<', 0, '?', 0}):
		data, err = unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM).NewDecoder().Bytes(data)
	default:
		wide = false
	}
	if err != nil {
		return "", fmt.Errorf("it begins as UTF-16 and is none (%w)", err)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	if head := declaration.FindString(text); head != "" {
		rest := text[len(head):]
		if head = xml11.ReplaceAllString(head, "${1}1.0${2}"); wide {
			head = encodingName.ReplaceAllString(head, "")
		}
		text = head + rest
	}
	return text, nil
}

// charset decodes what the declaration says, by the names that Java knows too.
func charset(name string, in io.Reader) (io.Reader, error) {
	switch lower := strings.ToLower(name); lower {
	case "us-ascii", "ascii", "utf-8", "utf8":
		return in, nil
	case "utf-16", "utf-16le", "utf-16be", "utf16": // else unicodeText would have decoded it
		return nil, fmt.Errorf("the first line says %s, and the file is not: %w", name, encodingError(name))
	case "iso-8859-1", "iso8859-1", "iso8859_1", "latin1": // to browsers it is windows-1252, to Java not
		return charmap.ISO8859_1.NewDecoder().Reader(in), nil
	default:
		if rest, ok := strings.CutPrefix(lower, "cp12"); ok { // Java's Cp1252
			lower = "windows-12" + rest
		}
		e, err := htmlindex.Get(lower)
		if err != nil || e == encoding.Replacement {
			return nil, encodingError(name)
		}
		return e.NewDecoder().Reader(in), nil
	}
}

type encodingError string

func (e encodingError) Error() string {
	return fmt.Sprintf("the encoding %q is not supported", string(e))
}
