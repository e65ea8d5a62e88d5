package claviger

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unicode"
)

// TestFoldName has Java's results for letters whose lower case is not a single letter.
func TestFoldName(t *testing.T) {
	for name, want := range map[string]string{
		"": "", "Finance": "finance", "\u0130sis": "i\u0307sis", "\u0131I": "\u0131i", "\u212aELVIN": "kelvin",
		"\u017f": "\u017f", "\u00df": "\u00df",
		"\u1e9e": "\u00df", "\u212bngstr\u00d6m": "\u00e5ngstr\u00f6m", "\u01c5": "\u01c6", "\u01c4": "\u01c6",
		"ΟΔΟΣ": "οδος", "οδος": "οδος", "οδοσ": "οδοσ", "ΣΟΦΟΣ": "σοφος", "Σ": "σ", "ΑΣ-Α": "ασ-α", "Α_Σ": "α_ς",
		"Α@Σ": "α@σ", "ΑΣ@1": "ας@1", "1Σ": "1σ",
		"\xff": "\xff", "É\xffÉ": "é\xffé",
	} {
		if got := FoldName(name); got != want {
			t.Errorf("FoldName(%+q) = %+q, want %+q", name, got, want)
		}
		if got := FoldName(want); got != want {
			t.Errorf("FoldName(%+q) = %+q", want, got)
		}
	}
	// Names that differ in Java, although Go or Unicode folds them to the same text.
	for a, b := range map[string]string{"\u0130sis": "isis", "\u017f": "s", "οδος": "οδοσ", "\u00df": "ss",
		"\u0131": "i"} {
		if FoldName(a) == FoldName(b) {
			t.Errorf("%+q and %+q fold to the same text", a, b)
		}
	}
}

// TestFoldNameAsJava compares with a real Java: letters that have a case, and all words of up to four characters that
// have a sigma.
func TestFoldNameAsJava(t *testing.T) {
	if _, err := exec.LookPath("java"); err != nil {
		if os.Getenv("CLAVIGER_REQUIRE_JAVA") != "" {
			t.Fatal(err)
		}
		t.Skip("needs java")
	}
	var names []string
	for r := rune('!'); r < 0x2c00; r++ {
		// Versions of Java have different versions of Unicode, so only old letters are compared. Letters of scripts
		// that have a case are also compared next to a sigma.
		if unicode.IsUpper(r) || unicode.IsTitle(r) || unicode.IsLower(r) {
			names = append(names, string(r))
		}
		if r < 0x530 && (unicode.IsLetter(r) || unicode.IsMark(r) || unicode.IsNumber(r)) {
			names = append(names, "a"+string(r)+"\u03a3")
		}
	}
	signs := []rune("ΑσΣ1-_.:' @/,\u0301%")
	var grow func(name string, left int)
	grow = func(name string, left int) {
		if strings.ContainsRune(name, bigSigma) {
			names = append(names, name)
		}
		if left == 0 {
			return
		}
		for _, r := range signs {
			grow(name+string(r), left-1)
		}
	}
	grow("", 4)
	cmd := exec.CommandContext(t.Context(), "java", "-XX:TieredStopAtLevel=1", "testdata/java/Fold.java")
	cmd.WaitDelay = time.Minute
	cmd.Stdin = strings.NewReader(strings.Join(names, "\n") + "\n")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	java := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(java) != len(names) {
		t.Fatalf("Java answered %d of %d", len(java), len(names))
	}
	wrong := 0
	for i, name := range names {
		if got := FoldName(name); got != java[i] {
			t.Errorf("FoldName(%+q) = %+q, Java has %+q", name, got, java[i])
			if wrong++; wrong == 40 {
				t.Fatal("and more")
			}
		}
	}
}
