package kmsapi

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"claviger"
)

// Operations configures the servlets that Hadoop's web server has for operators:
// /jmx, /conf, /stacks, /logLevel and /prom. Their callers are authenticated, as
// for any other path. The zero value shows no properties and has no
// administrators.
type Operations struct {
	// ProcessName and SessionID are shown by the bean JvmMetrics. They are hadoop.kms.metrics.process.name and
	// .session.id. An empty ProcessName means KMS, an empty SessionID means no session.
	ProcessName, SessionID string
	// Port is part of the name of the web server's bean.
	Port int
	// Properties returns the properties for /conf, without secrets.
	Properties func() ([]Property, error)
	// Level is the log's level. If it is nil, /logLevel does not exist.
	Level *slog.LevelVar
	// Administrator reports whether a caller may see what is only for administrators
	// (hadoop.security.authorization with hadoop.kms.http.administrators). If it is
	// nil, anybody may.
	Administrator func(claviger.Principal) bool
	// InstrumentationAdmin means that /jmx, /conf and /stacks are only for
	// administrators, too (hadoop.security.instrumentation.requires.admin).
	InstrumentationAdmin bool
	// Prometheus serves /prom. If it is nil, /prom does not exist.
	Prometheus http.Handler
}

// Property is one property of /conf.
type Property struct {
	Name    string
	Written string // with variables not expanded, for Hadoop's XML
	Value   string // with variables expanded, for Hadoop's JSON
	Final   bool
	Source  string // the place that sets it
}

// servlet serves one of pages.
type servlet func(c *call)

// page is one of the pages of Hadoop's web server, or of Ranger's KMS.
type page struct {
	op     string // its name in metrics
	serve  servlet
	exists func(*Operations) bool // nil: always
}

// pages are these pages by path. Each answers GET, HEAD and OPTIONS.
var pages = map[string]page{
	"/jmx":         {"jmx", (*call).jmx, nil},
	base + "/jmx":  {"jmx", (*call).jmx, nil},
	pathStatus:     {"status", (*call).rangerStatus, nil},
	pathJSON:       {"metrics", (*call).rangerJSON, nil},
	pathPrometheus: {"metrics", (*call).rangerPrometheus, nil},
	"/conf":        {"conf", (*call).conf, nil},
	"/stacks":      {"stacks", (*call).stacks, nil},
	"/logLevel":    {"log_level", (*call).logLevel, func(o *Operations) bool { return o.Level != nil }},
	"/prom":        {"prom", (*call).prometheus, func(o *Operations) bool { return o.Prometheus != nil }},
}

// servletOf returns the servlet of a path, and its operation's name in metrics; nil
// if the path has none.
func (a *api) servletOf(path string) (op string, s servlet) {
	if p, ok := pages[path]; ok && (p.exists == nil || p.exists(&a.Operations)) {
		return p.op, p.serve
	}
	return "", nil
}

// administratorOnly returns true if the caller may see a page for administrators.
// Otherwise it writes the answer. Hadoop's is HttpServer2.hasAdministratorAccess.
func (c *call) administratorOnly() bool {
	may := c.Operations.Administrator
	if may == nil || c.caller.Name != "" && may(c.caller.Principal) {
		return true
	}
	c.Log.Warn("a page for administrators was refused: hadoop.kms.http.administrators does not name the user",
		"user", c.caller.Name, "path", rawPath(c.r))
	c.page(http.StatusForbidden, "Unauthenticated users are not authorized to access this page.")
	return false
}

// mayInstrument returns true if the caller may see /jmx, /conf and /stacks.
// Otherwise it writes the answer. Hadoop's is
// HttpServer2.isInstrumentationAccessAllowed.
func (c *call) mayInstrument() bool {
	return !c.Operations.InstrumentationAdmin || c.administratorOnly()
}

// readMethod returns true if the method is GET or HEAD. Otherwise it writes the
// answer.
func (c *call) readMethod() bool {
	switch c.r.Method {
	case http.MethodGet, http.MethodHead:
		return true
	case http.MethodOptions:
		c.w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		c.answer(http.StatusOK, "text/plain;charset=utf-8", nil)
	default:
		c.w.Header().Set("Allow", "GET, HEAD, OPTIONS")
		c.page(http.StatusMethodNotAllowed, "HTTP method "+c.r.Method+" is not supported by this URL")
	}
	return false
}

// conf is Hadoop's ConfServlet: the configuration as XML, or as JSON if the client
// accepts JSON. The parameter name selects one property.
func (c *call) conf() {
	if !c.readMethod() || !c.mayInstrument() {
		return
	}
	asJSON := strings.Contains(c.r.Header.Get("Accept"), "application/json")
	contentType := "text/xml;charset=utf-8"
	if asJSON {
		contentType = "application/json;charset=utf-8"
	}
	var list []Property
	if c.Operations.Properties != nil {
		var err error
		if list, err = c.Operations.Properties(); err != nil {
			c.Log.Error("/conf shows nothing", "id", c.caller.RequestID, "err", err)
			c.page(http.StatusInternalServerError, "The configuration cannot be shown; the server's log says why")
			return
		}
	}
	name, _ := c.param("name")
	one := name != ""
	if one {
		if list = slices.DeleteFunc(list, func(p Property) bool { return p.Name != name }); len(list) == 0 {
			c.answer(http.StatusNotFound, contentType, nil)
			return
		}
	}
	if asJSON {
		c.answer(http.StatusOK, contentType, confJSON(list, one))
		return
	}
	c.answer(http.StatusOK, contentType, confXML(list))
}

// confXML returns the properties as Hadoop's Configuration.writeXml does.
func confXML(list []Property) []byte {
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0" encoding="UTF-8" standalone="no"?><configuration>` + "\n")
	element := func(name, text string) {
		b.WriteString("<" + name + ">")
		_ = xml.EscapeText(&b, []byte(text)) // writing to a bytes.Buffer cannot fail
		b.WriteString("</" + name + ">")
	}
	for _, p := range list {
		b.WriteString("<property>")
		element("name", p.Name)
		element("value", p.Written)
		element("final", fmt.Sprint(p.Final))
		element("source", p.Source)
		b.WriteString("</property>\n")
	}
	b.WriteString("</configuration>\n")
	return b.Bytes()
}

// confJSON returns the properties as Hadoop's Configuration.dumpConfiguration does.
func confJSON(list []Property, one bool) []byte {
	type property struct {
		Key      string `json:"key"`
		Value    string `json:"value"`
		IsFinal  bool   `json:"isFinal"`
		Resource string `json:"resource"`
	}
	all := make([]property, len(list))
	for i, p := range list {
		all[i] = property{p.Name, p.Value, p.Final, p.Source}
	}
	var shown any = map[string]any{"properties": all}
	if one {
		shown = map[string]any{"property": all[0]}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(shown) // strings and booleans always encode
	return b.Bytes()
}

const (
	// maxStacks is the longest dump of /stacks, in bytes; stackOfOne is about the part
	// of one goroutine.
	maxStacks  = 8 << 20
	stackOfOne = 2 << 10
	// A dump stops the whole process while it is made. So the server shows a dump again
	// for at least dumpShown, and for dumpRest times as long as it took.
	dumpShown = time.Second
	dumpRest  = 50
)

// stackDump makes the dumps of /stacks, one at a time. Requests that arrive while
// a dump is made, or shortly after, get the same dump.
type stackDump struct {
	mu    sync.Mutex
	shown []byte
	until time.Time
}

func (d *stackDump) get() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Now().Before(d.until) {
		return d.shown
	}
	const more = 64 << 10 // for goroutines that start now
	buffer := make([]byte, min(maxStacks, runtime.NumGoroutine()*stackOfOne+more))
	began := time.Now()
	n := runtime.Stack(buffer, true)
	d.shown = threadDump(buffer[:n])
	took := time.Since(began)
	d.until = time.Now().Add(max(dumpShown, dumpRest*took))
	return d.shown
}

// stacks is Hadoop's StackServlet. It shows goroutines.
func (c *call) stacks() {
	if !c.readMethod() || !c.mayInstrument() {
		return
	}
	c.answer(http.StatusOK, "text/plain;charset=utf-8", c.dump.get())
}

// threadDump converts the runtime's dump to the format of Hadoop's
// ReflectionUtils.printThreadInfo, which tools for stacks can read. It removes the
// arguments of calls: a word of an argument may be part of a key.
func threadDump(dump []byte) []byte {
	goroutines := bytes.Split(bytes.TrimSpace(dump), []byte("\n\n"))
	var b bytes.Buffer
	fmt.Fprintf(&b, "Process Thread Dump: \n%d active threads\n", len(goroutines))
	for _, g := range goroutines {
		lines := strings.Split(string(g), "\n")
		// goroutine 12 [IO wait, 3 minutes]:
		id, state, _ := strings.Cut(strings.TrimPrefix(lines[0], "goroutine "), " ")
		var frames []string
		for i := 1; i+1 < len(lines); i += 2 {
			call, place := lines[i], strings.TrimSpace(lines[i+1])
			if j := strings.LastIndexByte(call, '('); j > 0 && !strings.HasPrefix(call, "created by ") {
				call = call[:j]
			}
			place, _, _ = strings.Cut(place, " +0x")
			frames = append(frames, call+" ("+place+")")
		}
		name := "goroutine"
		if len(frames) > 0 {
			name, _, _ = strings.Cut(strings.TrimPrefix(frames[len(frames)-1], "created by "), " ")
		}
		fmt.Fprintf(&b, "Thread %s (%s):\n  State: %s\n  Stack:\n", id, name, strings.Trim(state, "[]:"))
		for _, f := range frames {
			b.WriteString("    " + f + "\n")
		}
	}
	return b.Bytes()
}

// logLevel is Hadoop's LogLevel.Servlet, which `hadoop daemonlog` uses. This
// server has one log, so the class in the request does not matter.
func (c *call) logLevel() {
	if !c.readMethod() || !c.administratorOnly() {
		return
	}
	var b strings.Builder
	b.WriteString("<html>\n<link rel='stylesheet' type='text/css' href='/static/hadoop.css'>\n" +
		"<title>Log Level</title>\n<body>\n<h1>Log Level</h1>\n\n")
	if class, ok := c.param("log"); ok && class != "" {
		c.logLevelResults(&b, class)
	}
	b.WriteString("<br /><hr /><h3>Get / Set</h3>\n" +
		"<form>Class Name: <input type='text' size='50' name='log' /> " +
		"<input type='submit' value='Get Log Level' /></form>\n" +
		"<form>Class Name: <input type='text' size='50' name='log' /> Level: <input type='text' name='level' /> " +
		"<input type='submit' value='Set Log Level' /></form>\n" +
		"<hr />\n<a href='http://hadoop.apache.org'>Hadoop</a>, " + time.Now().Format("2006") + ".\n</body></html>\n")
	c.answer(http.StatusOK, "text/html;charset=utf-8", []byte(b.String()))
}

// logLevelResults sets the level that the request names, if it names one, and
// writes the part of the page that shows the result.
func (c *call) logLevelResults(b *strings.Builder, class string) {
	b.WriteString("<br /><hr /><h3>Results</h3>\n")
	output := func(label, value string) {
		b.WriteString("<!-- OUTPUT -->" + label + ": <b>" + escape(value) + "</b><br />\n")
	}
	output("Submitted Class Name", class)
	output("Log Class", "log/slog.Logger")
	if level, ok := c.param("level"); ok && level != "" {
		output("Submitted Level", level)
		if l, ok := levelNamed(level); ok {
			was := c.Operations.Level.Level()
			c.Operations.Level.Set(min(was, l, slog.LevelWarn)) // so that the log shows the next line in any case
			c.Log.Warn("the log's level is changed",
				"user", c.caller.Name, "remote", c.caller.RemoteAddr, "from", was, "to", l)
			c.Operations.Level.Set(l)
			b.WriteString("<!-- OUTPUT -->Setting Level to " + levelName(l) + " ...<br />\n")
		} else {
			output("Bad Level ", level)
		}
	}
	output("Effective Level", levelName(c.Operations.Level.Level()))
	b.WriteByte('\n')
}

// levels maps log4j's levels to slog's four.
var levels = []struct {
	name  string
	level slog.Level
}{
	{"DEBUG", slog.LevelDebug}, {"INFO", slog.LevelInfo}, {"WARN", slog.LevelWarn}, {"ERROR", slog.LevelError},
	{"ALL", slog.LevelDebug}, {"TRACE", slog.LevelDebug}, {"FATAL", slog.LevelError}, // no OFF: errors always stay
}

func levelNamed(name string) (slog.Level, bool) {
	for _, l := range levels {
		if strings.EqualFold(l.name, name) {
			return l.level, true
		}
	}
	return 0, false
}

func levelName(l slog.Level) string {
	for _, known := range levels {
		if known.level == l {
			return known.name
		}
	}
	return l.String()
}

// prometheus serves /prom. As in Hadoop, its readers are authenticated.
func (c *call) prometheus() {
	if !c.readMethod() {
		return
	}
	c.status = http.StatusOK
	c.Operations.Prometheus.ServeHTTP(c.w, c.r)
}
