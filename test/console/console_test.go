package console

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// TestPages opens each page in light and in dark, signed in by Kerberos: the browser reports no error, axe finds
// nothing, hostile names stay text, and a page with all that it loads has at most 100 KB.
func TestPages(t *testing.T) {
	s := newSite(t)
	env := s.kerberize()
	for name, setting := range map[string]string{"light": light, "dark": dark} {
		t.Run(name, func(t *testing.T) {
			b := startBrowser(t, setting, env...)
			b.signIn(s)
			if !eval[bool](b, `matchMedia("(prefers-color-scheme: `+name+`)").matches`) {
				t.Errorf("the browser does not prefer %s", name)
			}
			for page, path := range pages() {
				if status := b.open(s.console + path); status != 200 {
					t.Errorf("%s: %d", page, status)
				}
				b.checkAccessible()
				b.checkWidth()
				if title := eval[string](b, "document.title"); title == "owned" {
					t.Errorf("%s: a key's name ran as a script", page)
				}
				n := eval[int](b, `performance.getEntries().reduce((n, e) => n + (e.decodedBodySize || 0), 0)`)
				if n > 100<<10 || n == 0 {
					t.Errorf("%s: %d bytes", page, n)
				}
				b.checkMessages()
			}
		})
	}
}

// signIn opens the first page. Chromium loads its Kerberos library after the first challenge, so the first answer is
// 401, and the second one lets the user in.
func (b *browser) signIn(s *site) {
	b.t.Helper()
	status := b.open(s.console + "/")
	for range 3 {
		if status == 200 {
			break
		}
		status = b.open(s.console + "/")
	}
	user := eval[string](b, `document.querySelector(".user b")?.textContent ?? ""`)
	if status != 200 || user != "alice" {
		b.t.Fatalf("not signed in: %d, %q", status, user)
	}
	b.clearMessages() // the refused navigations
}

// TestChanges rolls a key with a hostile name, and brings back a deleted key, by the forms of the pages and with the
// keyboard.
func TestChanges(t *testing.T) {
	s := newSite(t)
	b := startBrowser(t, light, s.kerberize()...)
	b.signIn(s)
	change := func(path, field, typed, result string) {
		t.Helper()
		b.open(s.console + path)
		text, err := json.Marshal(typed)
		if err != nil {
			t.Fatal(err)
		}
		eval[bool](b, `(() => { const field = document.getElementById("`+field+`"); field.value = `+string(text)+`;
			field.form.requestSubmit(); return true; })()`)
		b.until(`document.body.innerText.includes("` + result + `")`)
	}
	change(pages()["hostile"], "roll-typed", "finance", "is not the name of this key")
	b.clearMessages() // the browser reports the status 422
	change(pages()["hostile"], "roll-typed", hostile, "its current version is")
	change(pages()["deleted"], "undelete-0", "hbase", "The key is back")
	b.checkAccessible()
	b.checkMessages()
}

// TestLive: live.js shows what is new, keeps the focus and opened details, and marks a page as stale when the server
// does not answer.
func TestLive(t *testing.T) {
	s := newSite(t)
	b := startBrowser(t, light, s.kerberize()...)
	b.signIn(s)
	b.open(s.console + "/audit?sort=user")
	if err := chromedp.Do(b.ctx, chromedp.KeyEvent("\t")); err != nil {
		t.Fatal(err)
	}
	if got := eval[string](b, `document.activeElement.textContent`); got != "Skip to the content" {
		t.Errorf("the first stop of the keyboard is %q", got)
	}
	eval[bool](b, `document.querySelectorAll("#events th a")[2].focus();
		window.before = document.getElementById("when").textContent; true`)
	b.until(`document.getElementById("when").textContent !== window.before`)
	if got := eval[string](b, `document.activeElement.textContent`); got != "Operation" {
		t.Errorf("after a refresh the focus is at %q", got)
	}
	b.checkMessages()
	s.end()
	b.until(`document.body.classList.contains("stale") &&
		document.getElementById("stale").textContent.includes("stale since")`)
	b.clearMessages() // requests that fail
	s.start()
}

// TestWithoutScripts: filters, and changes of keys, need no JavaScript.
func TestWithoutScripts(t *testing.T) {
	s := newSite(t)
	b := startBrowser(t, noScripts, s.kerberize()...)
	b.signIn(s)
	submit := func(field, value string) {
		t.Helper()
		eval[bool](b, `(() => { const field = document.getElementById("`+field+`"); field.value = "`+value+`";
			field.form.requestSubmit(); return true; })()`)
	}
	b.open(s.console + "/keys")
	submit("filter", "FIN")
	b.until(`location.search === "?filter=FIN" && document.querySelectorAll("#keys tbody tr").length === 1`)
	b.open(s.console + "/keys?key=finance")
	submit("roll-typed", "finance")
	b.until(`document.body.innerText.includes("its current version is finance@2")`)
	b.open(s.console + "/")
	when := eval[string](b, `document.getElementById("when").textContent`)
	time.Sleep(7 * time.Second) // longer than live.js waits, if it ran
	if now := eval[string](b, `document.getElementById("when").textContent`); now != when {
		t.Error("a script ran, so this test shows nothing")
	}
	b.checkMessages()
}

var screenshots = flag.Duration("screenshots", 0, "serve requests for this time, then write docs/img/console-*.png")

// TestScreenshots writes the pictures of docs/console.md.
func TestScreenshots(t *testing.T) {
	if *screenshots == 0 {
		t.Skip("-screenshots 2m writes the pictures of docs/console.md")
	}
	s := newSite(t)
	s.decrypt(s.wrapped)
	for began := time.Now(); time.Since(began) < *screenshots; {
		share := time.Since(began).Seconds() / screenshots.Seconds()
		s.decrypt(s.generate([]string{"finance", "warehouse"}[rand.IntN(2)]))
		time.Sleep(time.Duration((1.2 - share) * float64(rand.IntN(100)) * float64(time.Millisecond)))
	}
	b := startBrowser(t, light)
	b.open(s.console + "/?user.name=root")
	for page, path := range pages() {
		if page == "hostile" || page == "deleted" {
			continue
		}
		b.open(s.console + path)
		picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("..", "..", "docs", "img", "console-"+page+".png")
		if err := os.WriteFile(file, picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
