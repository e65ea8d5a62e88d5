// Command claviger is a Hadoop-compatible key management server whose
// encryption-zone keys are born in an HSM and never leave it, and the way
// there from any other Hadoop KMS. One binary, one file a subcommand.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/buildinfo"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/secret"
	"claviger/terminal"
)

// Exit codes. They are part of the command line's contract.
const (
	exitOK      = 0
	exitFailed  = 1 // the work was not done; standard error says why
	exitUsage   = 2 // the command line itself is wrong
	exitRefused = 3 // the work was refused, or found something that a person must decide
	exitPIN     = 4 // the HSM has refused the PIN; after a few more tries it locks the PIN
)

// exitError carries an exit code through cobra. Its error is nil where the output has said everything.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() { os.Exit(run(os.Args[1:])) }

// run is main without the exit, so that scripts in tests can call it.
func run(args []string) int {
	if err := noCoreDumps(); err != nil {
		fmt.Fprintf(os.Stderr, "claviger: secrets could get into a core file: %v\n", err)
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	root.SetArgs(args)
	cmd, err := terminal.Misspelt(root, args)
	if err == nil {
		cmd, err = root.ExecuteContextC(ctx)
	}
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	var coded *exitError
	if errors.As(err, &coded) && coded.err == nil {
		return code
	}
	_ = terminal.Fprintf(cmd.ErrOrStderr(), "claviger: %v%s\n", err, asWhom(err)) // there is nowhere else to write
	if code == exitUsage {
		fmt.Fprintf(cmd.ErrOrStderr(), "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

// exitCode is the exit code for an error.
func exitCode(err error) int {
	var coded *exitError
	switch {
	case pkcs11.IsPINRefused(err):
		return exitPIN
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, new(*terminal.UsageError)):
		return exitUsage
	case errors.As(err, new(*claviger.RefusedError)), errors.As(err, new(*owner.RootError)):
		return exitRefused
	}
	return exitFailed
}

// asWhom names the user that this process runs as, where the system refused this user, and says how the user
// gets the right unless the error says that itself. The same command may work for another user.
func asWhom(err error) string {
	if !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	uid := os.Geteuid()
	text := fmt.Sprintf(" (this process runs as uid %d", uid)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		text = fmt.Sprintf(" (this process runs as user %s, uid %d", u.Username, uid)
	}
	if cure := secret.Admit(err); cure != "" && !strings.Contains(err.Error(), "chown ") {
		text += "; " + cure
	}
	return text + ")"
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "claviger",
		Short: "A Hadoop KMS whose keys are born in an HSM, and the way there",
		Long: `claviger is a key management server for Hadoop: HDFS, Spark, Hive and 'hadoop key' talk to it
unchanged. Its encryption-zone keys are born in a hardware security module and never leave it.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newKMSCommand(), newMigrateCommand(), newHSMCommand(), newKeyCommand(), newTrusteeCommand(),
		newOrgtoolCommand(), newKeyHSMCommand(), newACLCommand(), newAuditCommand(), newMetastoreCommand(),
		newDemoCommand(), newVersionCommand())
	root.Version = buildinfo.Read().String()
	root.SetVersionTemplate("{{.Version}}\n")
	terminal.CheckUsage(root)
	terminal.Help(root)
	return root
}
