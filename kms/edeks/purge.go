package edeks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/audit"
	"claviger/kms"
	"claviger/migrate"
	"claviger/migrate/report"
	"claviger/migrate/verdict"
	"claviger/provider/hsm"
	"claviger/terminal"
)

// PurgeUse and PurgeShort describe the command claviger key version purge.
const (
	PurgeUse   = "purge KEY@N --conf DIR [--image FILE] [--namenode URL]"
	PurgeShort = "Destroy one old version of a key for ever"
)

// PurgeOptions are the flags of claviger key version purge.
type PurgeOptions struct {
	VerdictOptions
	Yes string // the version again
}

// Define gives a command the flags.
func (o *PurgeOptions) Define(cmd *cobra.Command) {
	o.VerdictOptions.Define(cmd)
	cmd.Flags().StringVar(&o.Yes, "yes-purge", "", "the version again, instead of typing it")
}

// VersionPurge is the output of claviger key version purge.
type VersionPurge struct {
	Verdict *migrate.Verdict `json:"verdict"`
	Purged  bool             `json:"purged"`
}

// Purge destroys a version if a verdict grants it and a person confirms it. The result is nil only with an error. hdfs
// is the configuration folder of HDFS; "" is that of the KMS.
func (o *PurgeOptions) Purge(cmd *cobra.Command, svc *kms.Service, engine *migrate.Engine, hdfs, version string) (
	*VersionPurge, error) {
	ctx, log := cmd.Context(), cmd.ErrOrStderr()
	primary, ok := svc.Primary.(*hsm.Provider)
	if !ok {
		return nil, claviger.Errorf("edeks.Purge", claviger.Unsupported, version,
			"%s cannot destroy one version of a key; only an HSM can", svc.Primary.URI())
	}
	least, err := svc.Conf.Duration("claviger.purge.min.unused", time.Second)
	if err != nil {
		return nil, err
	}
	v, err := o.judgeVersion(ctx, svc.Conf.Dir(), hdfs, version, least, engine, log)
	if err != nil {
		return nil, err
	}
	result := &VersionPurge{Verdict: v}
	if v.Outcome != migrate.Granted {
		return result, claviger.Refuse("nothing was destroyed")
	}
	var yes *string
	if cmd.Flags().Changed("yes-purge") {
		yes = &o.Yes
	} else {
		report.VersionVerdict(log, v) // a person must see it before confirming
	}
	if err := terminal.NewPrompt(cmd).ConfirmName(version, yes, "purged", fmt.Sprintf("Data under %s can never be "+
		"read again. Type the version to purge it: ", claviger.Printable(version))); err != nil {
		return result, err
	}
	trail, err := svc.OpenAudit(ctx, log)
	if err != nil {
		return nil, err
	}
	err = audited(ctx, trail, audit.Event{Op: audit.PurgeKey, Key: v.Versions[0].Key, Version: version,
		Caller: kms.OwnCaller(), Provider: primary.URI(), Message: "only version " + version + ", by " + v.Name},
		func() error { return primary.PurgeVersion(ctx, version) })
	result.Purged = err == nil
	return result, errors.Join(err, trail.Err(), trail.Close())
}

// trail is an audit log that records attempts.
type trail interface {
	audit.Logger
	audit.Guard
}

// audited does work between the record of its attempt and the record of its result.
func audited(ctx context.Context, trail trail, event audit.Event, work func() error) error {
	if err := trail.Begin(ctx, event); err != nil {
		return err
	}
	err := work()
	if event.Status = audit.OK; err != nil {
		event.Status, event.Message = audit.Error, claviger.Reason(err)
	}
	trail.Log(context.WithoutCancel(ctx), event)
	return err
}

// judgeVersion makes a verdict on one version of a key here, and records it in the journal.
func (o *VerdictOptions) judgeVersion(ctx context.Context, conf, hdfs, version string, least time.Duration,
	engine *migrate.Engine, log io.Writer) (*migrate.Verdict, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if _, err := engine.OldVersion(ctx, version); err != nil { // before images are counted
		return nil, err
	}
	in, err := o.input(ctx, conf, hdfs, engine, log)
	if err != nil {
		return nil, err
	}
	in.MinUnused = least
	old, err := engine.OldVersion(ctx, version)
	if err != nil {
		return nil, err
	}
	v := verdict.JudgeVersion(in, old)
	v.User = kms.OSUser()
	return v, engine.RecordVerdict(ctx, v)
}

// PurgeText writes the result for people.
func PurgeText(w io.Writer, r *VersionPurge) {
	if !r.Purged {
		report.VersionVerdict(w, r.Verdict)
		return
	}
	fmt.Fprintf(w, "Version %s is destroyed for ever, by %s.\n", claviger.Printable(r.Verdict.Versions[0].Version),
		r.Verdict.Name)
}
