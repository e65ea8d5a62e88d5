package hadoopconf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Limits of one file and the files that it includes. Real ones are a few hundred kilobytes in two or three files.
const (
	maxSize         = 8 << 20 // bytes, of all files together
	maxIncludeDepth = 10
	maxIncludes     = 100
	maxNesting      = 100 // of <configuration> in <configuration>
)

// parser reads one file and the files that it includes.
type parser struct {
	read     func(path string) ([]byte, error) // at most maxSize+1 bytes
	props    []Property
	warnings []string
	open     []string // files being read, outermost first
	files    int      // number of files read so far
	size     int      // of those files, in bytes
	nesting  int
}

func parseFile(path string) ([]Property, []string, error) {
	p := &parser{read: readFile}
	if err := p.file(path); err != nil {
		return nil, nil, err
	}
	return p.props, p.warnings, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, err // the caller may do without the file
	case err != nil:
		return nil, fmt.Errorf("%w; let the user that this process runs as read it", err)
	case !info.Mode().IsRegular(): // a read of a named pipe would wait, and a device has no end
		return nil, fmt.Errorf("%s is not a regular file; name one", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w; let the user that this process runs as read it", err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSize+1))
}

func (p *parser) file(path string) error {
	if slices.Contains(p.open, path) {
		return fmt.Errorf("%s: the file includes itself through %s; remove one of the xi:include elements", path,
			strings.Join(p.open, ", "))
	}
	if len(p.open) > maxIncludeDepth {
		return fmt.Errorf("%s: files are included more than %d deep; include it from an outer file", path,
			maxIncludeDepth)
	}
	if p.files > maxIncludes {
		return fmt.Errorf("%s: more than %d files are included; combine some of them", path, maxIncludes)
	}
	data, err := p.read(path)
	if err != nil {
		return err // the error names the file, and may be ErrNotExist
	}
	p.files++
	if p.size += len(data); p.size > maxSize {
		return fmt.Errorf("%s: the file, with the files that it includes, is larger than %d MiB; is it a "+
			"configuration file?", path, maxSize>>20)
	}
	p.open = append(p.open, path)
	defer func() { p.open = p.open[:len(p.open)-1] }()
	text, err := unicodeText(data)
	if err != nil {
		return fmt.Errorf("%s: malformed XML: %w; save the file as UTF-8", path, err)
	}
	return p.parse(path, text)
}

// document is a reader of XML tokens that knows its file and line.
type document struct {
	*xml.Decoder
	path string
}

func (d *document) line() int {
	line, _ := d.InputPos()
	return line
}

// fail makes an error with file, line and cure from an error of the XML reader.
func (d *document) fail(err error) error {
	line := d.line()
	msg, cure := err.Error(),
		"a configuration file is <configuration>, in it <property><name>..</name><value>..</value></property>"
	var syntax *xml.SyntaxError
	switch {
	case errors.As(err, &syntax):
		line, msg = syntax.Line, syntax.Msg
	case errors.Is(err, io.EOF):
		msg = "the file ends before its last element does"
	}
	var enc encodingError
	switch {
	case errors.As(err, &enc):
		msg, cure = enc.Error(), "save the file as UTF-8"
	case strings.Contains(msg, "invalid UTF-8"):
		cure = "save the file as UTF-8, or name its encoding in the first line"
	case strings.Contains(msg, "character entity"):
		cure = "write & as &amp;, and replace an entity of a DOCTYPE by its text, because DOCTYPE is not read here"
	}
	return fmt.Errorf("%s:%d: malformed XML: %s; %s", d.path, line, msg, cure)
}

// parse reads one document. Entities of a DOCTYPE are neither expanded nor fetched, since encoding/xml knows only the
// five entities of XML.
func (p *parser) parse(path, text string) error {
	d := &document{Decoder: xml.NewDecoder(strings.NewReader(text)), path: path}
	d.CharsetReader = charset
	seen := false
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			if !seen {
				return fmt.Errorf("%s: malformed XML: there is no <configuration> element; it must contain all other "+
					"elements", path)
			}
			return nil
		}
		if err != nil {
			return d.fail(err)
		}
		switch t := tok.(type) {
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return fmt.Errorf("%s: malformed XML: there is text outside of <configuration>; remove it, or make "+
					"it a comment", path)
			}
		case xml.StartElement:
			if t.Name.Local != "configuration" {
				return fmt.Errorf("%s:%d: the outermost element is <%s>; it must be <configuration>", path,
					d.line(), t.Name.Local)
			}
			if seen {
				return fmt.Errorf("%s:%d: malformed XML: there is a second outermost <configuration>; put its "+
					"properties into the first", path, d.line())
			}
			seen = true
			if err := p.configuration(d); err != nil {
				return err
			}
		}
	}
}

// configuration reads the elements up to the end of the current element.
func (p *parser) configuration(d *document) error {
	if p.nesting++; p.nesting > maxNesting {
		return fmt.Errorf("%s:%d: elements are nested more than %d deep; remove the inner <configuration> elements",
			d.path, d.line(), maxNesting)
	}
	defer func() { p.nesting-- }()
	for {
		tok, err := d.Token()
		if err != nil {
			return d.fail(err)
		}
		switch t := tok.(type) {
		case xml.EndElement:
			return nil
		case xml.StartElement:
			switch t.Name.Local { // in any namespace, as in Hadoop
			case "property":
				err = p.property(d, t)
			case "configuration":
				err = p.configuration(d)
			case "include":
				err = p.include(d, t)
			default: // as Hadoop, read the elements inside an unknown element
				p.warnings = append(p.warnings,
					fmt.Sprintf("%s:%d: element <%s> is not known here; the elements in it are read as if they were "+
						"outside of it", d.path, d.line(), t.Name.Local))
				err = p.configuration(d)
			}
			if err != nil {
				return err
			}
		}
	}
}

func (d *document) skip() error {
	if err := d.Skip(); err != nil {
		return d.fail(err)
	}
	return nil
}

// text returns the text of the current element.
func (d *document) text() (string, error) {
	var b strings.Builder
	for {
		tok, err := d.Token()
		if err != nil {
			return "", d.fail(err)
		}
		switch t := tok.(type) {
		case xml.CharData:
			b.Write(t)
		case xml.EndElement:
			return b.String(), nil
		case xml.StartElement:
			return "", fmt.Errorf("%s:%d: element <%s> inside a value; write < as &lt; if it is meant as text",
				d.path, d.line(), t.Name.Local)
		}
	}
}

// property reads a <property>. Its parts are elements or attributes.
func (p *parser) property(d *document, start xml.StartElement) error {
	r := &propertyReader{p: p, d: d, prop: Property{File: d.path, Line: d.line()}}
	for _, a := range start.Attr {
		r.set(a.Name.Local, a.Value)
	}
	for {
		tok, err := d.Token()
		if err != nil {
			return d.fail(err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if err := r.element(t.Name.Local); err != nil {
				return err
			}
		case xml.EndElement:
			r.finish()
			return nil
		}
	}
}

// propertyReader reads the parts of one <property>.
type propertyReader struct {
	p                    *parser
	d                    *document
	prop                 Property
	hasValue, emptyValue bool
}

// element reads an element in the <property>. As in Hadoop, an element without text is ignored: <value></value> neither
// sets nor overrides a property.
func (r *propertyReader) element(name string) error {
	switch name {
	case "name", "value", "final":
		v, err := r.d.text()
		if err != nil {
			return err
		}
		if v != "" || name == "final" {
			r.set(name, v)
		} else if name == "value" {
			r.emptyValue = true
		}
		return nil
	case "description", "source", "tag":
	default:
		r.warn("element <%s> in a property is not known and is ignored", name)
	}
	return r.d.skip()
}

// set sets a part of the property.
func (r *propertyReader) set(part, v string) {
	switch part {
	case "name":
		r.prop.Name = trim(v)
	case "value":
		r.prop.Value, r.hasValue = v, true
	case "final":
		if r.prop.Final = v == "true"; !r.prop.Final && trim(v) == "true" {
			r.warn("property %s: <final>%s</final> does not mean true, because of the blanks in it; write "+
				"<final>true</final>", r.prop.Name, v)
		}
	}
}

// finish adds the property to those of the parser, if it has a name and a value.
func (r *propertyReader) finish() {
	switch {
	case r.prop.Name == "":
		r.warn("a property without a name is ignored; give it a name, or remove it")
	case !r.hasValue && r.emptyValue:
		r.warn("property %s has an empty <value> and is ignored, as in Hadoop; remove it (an ACL that admits nobody "+
			"is a single blank)", r.prop.Name)
	case !r.hasValue:
		r.warn("property %s has no <value> and is ignored, as in Hadoop; give it a value, or remove it", r.prop.Name)
	default:
		r.p.props = append(r.p.props, r.prop)
	}
}

func (r *propertyReader) warn(format string, args ...any) {
	r.p.warnings = append(r.p.warnings, fmt.Sprintf("%s:%d: ", r.d.path, r.prop.Line)+fmt.Sprintf(format, args...))
}

// include reads the file of an XInclude, or its fallback if the file does not exist.
func (p *parser) include(d *document, start xml.StartElement) error {
	href, line := "", d.line()
	for _, a := range start.Attr {
		if a.Name.Local == "href" {
			href = a.Value
		}
	}
	path, err := includePath(d.path, href)
	if err != nil {
		return fmt.Errorf("%s:%d: xi:include href=%q: %w", d.path, line, href, err)
	}
	missing := false
	if err := p.file(path); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = true
	}
	fallback := false
	for {
		tok, err := d.Token()
		if err != nil {
			return d.fail(err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if t.Name.Local == "fallback" && missing {
				fallback = true
				if err := p.configuration(d); err != nil {
					return err
				}
				continue
			}
			if err := d.skip(); err != nil {
				return err
			}
		case xml.EndElement:
			if missing && !fallback {
				return fmt.Errorf("%s:%d: the included file %s does not exist; create it, or give the include an "+
					"xi:fallback", d.path, line, path)
			}
			return nil
		}
	}
}

func includePath(from, href string) (string, error) {
	u, err := url.Parse(href)
	switch {
	case err != nil:
		return "", err
	case href == "":
		return "", errors.New("it has no file name")
	case u.Scheme != "" && u.Scheme != "file":
		return "", fmt.Errorf("only files can be included, not %s:; put a copy beside this file and include that",
			u.Scheme)
	}
	if filepath.IsAbs(u.Path) {
		return filepath.Clean(u.Path), nil
	}
	return filepath.Join(filepath.Dir(from), u.Path), nil
}

// trim removes leading and trailing characters up to U+0020, as Java's String.trim does.
func trim(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' })
}
