package console

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// browser is a Chromium with one tab.
type browser struct {
	t   *testing.T
	ctx context.Context
	axe string // the text of axe.min.js

	mu       sync.Mutex
	messages []string // what pages wrote to the console of the browser
}

// Settings of a browser.
const (
	light     = "preferredColorScheme=1"
	dark      = "preferredColorScheme=0"
	noScripts = "scriptEnabled=false"
)

// startBrowser starts a Chromium with a setting. env is added to its environment.
func startBrowser(t *testing.T, setting string, env ...string) *browser {
	t.Helper()
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(chromium(t)), chromedp.Flag("auth-server-allowlist", "localhost"),
		chromedp.Flag("blink-settings", setting), chromedp.WindowSize(1200, 800), chromedp.Env(env...),
		chromedp.UserDataDir(filepath.Join(t.TempDir(), "profile")),
	}
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := chromedp.NewContext(t.Context(), chromedp.WithAllocatorOptions(options...))
	t.Cleanup(cancel)
	axe, err := os.ReadFile(axePath(t))
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, ctx: ctx, axe: string(axe)}
	messages := chromedp.Console(ctx)
	go func() {
		for m, err := range messages {
			if err != nil {
				return
			}
			b.mu.Lock()
			b.messages = append(b.messages, string(m.Type)+": "+m.Text+" "+m.URL)
			b.mu.Unlock()
		}
	}()
	return b
}

// chromium returns the path of the browser. Without one the test is skipped, or fails if `make test` demands it.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	skip(t, "Chromium is not installed: run `make setup`, or on Debian apt-get install chromium")
	return ""
}

// axePath returns the path of axe.min.js.
func axePath(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "../../scripts/axe").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = errors.New(string(failed.Stderr))
		}
		skip(t, "axe-core cannot be fetched: "+err.Error())
	}
	return strings.TrimSpace(string(out))
}

func skip(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CLAVIGER_REQUIRE_CHROMIUM") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// open opens a page, and returns its status.
func (b *browser) open(url string) int64 {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 60*time.Second)
	defer cancel()
	resp, err := chromedp.Run(ctx, chromedp.NavigateResponse(url))
	if err != nil {
		b.t.Fatalf("%s: %v", url, err)
	}
	return resp.Status
}

// eval evaluates JavaScript in the page. A promise is awaited.
func eval[T any](b *browser, script string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%.200s: %v", script, err)
	}
	return v
}

// until waits until a script is true. chromedp.Poll cannot do so: it needs eval, which the page's policy forbids.
func (b *browser) until(script string) {
	b.t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if v, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](script)); err == nil && v {
			return
		} else if time.Since(began) > 30*time.Second {
			b.t.Fatalf("%s is not true: %v\n%s", script, err, eval[string](b, "document.body.innerText"))
		}
	}
}

// checkWidth fails the test if the page is wider than the window of a telephone.
func (b *browser) checkWidth() {
	b.t.Helper()
	const width, height, usual, usualHeight = 360, 800, 1200, 800
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(width, height)); err != nil {
		b.t.Fatal(err)
	}
	if n := eval[int](b, "document.documentElement.scrollWidth"); n > width {
		b.t.Errorf("%s is %d wide in a window of %d", eval[string](b, "location.pathname"), n, width)
	}
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(usual, usualHeight)); err != nil {
		b.t.Fatal(err)
	}
}

// checkMessages fails the test if a page wrote a warning or an error to the console of the browser.
func (b *browser) checkMessages() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.messages {
		b.t.Errorf("the console of the browser says: %s", m)
	}
	b.messages = nil
}

// clearMessages removes the messages of the pages so far.
func (b *browser) clearMessages() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages = nil
}

// checkAccessible fails the test if axe finds a fault in the page.
func (b *browser) checkAccessible() {
	b.t.Helper()
	eval[bool](b, b.axe+"; true")
	faults := eval[[]string](b, `axe.run(document).then(r => r.violations.map(v => v.id + " (" + v.impact + "): " +
		v.nodes.map(n => n.html + " " + n.failureSummary).join("; ")))`)
	slices.Sort(faults)
	for _, fault := range faults {
		b.t.Errorf("axe finds at %s: %s", eval[string](b, "location.pathname"), fault)
	}
}
