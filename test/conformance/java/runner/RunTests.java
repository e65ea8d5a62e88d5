import java.util.Arrays;
import java.util.Set;
import java.util.TreeSet;
import org.junit.runner.Description;
import org.junit.runner.JUnitCore;
import org.junit.runner.Request;
import org.junit.runner.manipulation.Filter;
import org.junit.runner.notification.Failure;
import org.junit.runner.notification.RunListener;

/**
 * Runs one JUnit 4 class, or only the named methods of the class. Prints one line for each test, "PASS|FAIL|SKIP METHOD
 * SECONDS", after a failure the stack trace, indented, and at the end "N of M passed".
 */
public class RunTests {
  public static void main(String[] args) throws Exception {
    Set<String> only = new TreeSet<>(Arrays.asList(args).subList(1, args.length));
    Request request = Request.aClass(Class.forName(args[0]));
    if (!only.isEmpty()) {
      request = request.filterWith(named(only));
    }
    Printer printer = new Printer();
    JUnitCore core = new JUnitCore();
    core.addListener(printer);
    core.run(request);
    System.out.println(printer.passed + " of " + (printer.passed + printer.failed) + " passed");
    System.exit(printer.failed == 0 && printer.passed > 0 ? 0 : 1);
  }

  private static Filter named(Set<String> only) {
    return new Filter() {
      @Override
      public boolean shouldRun(Description d) {
        return d.isSuite() || only.contains(d.getMethodName());
      }

      @Override
      public String describe() {
        return only.toString();
      }
    };
  }

  private static final class Printer extends RunListener {
    int passed;
    int failed;
    private long begin; // System.nanoTime
    private Failure failure;
    private boolean skipped; // an assumption of the test failed

    @Override
    public void testStarted(Description d) {
      begin = System.nanoTime();
      failure = null;
      skipped = false;
    }

    @Override
    public void testFailure(Failure f) {
      failure = f;
      if (!f.getDescription().isTest()) { // the set-up of the class failed
        print("FAIL", f.getDescription().getDisplayName());
      }
    }

    @Override
    public void testAssumptionFailure(Failure f) {
      skipped = true;
    }

    @Override
    public void testIgnored(Description d) {
      begin = System.nanoTime();
      print("SKIP", d.getMethodName());
    }

    @Override
    public void testFinished(Description d) {
      print(failure != null ? "FAIL" : skipped ? "SKIP" : "PASS", d.getMethodName());
    }

    private void print(String result, String test) {
      System.out.printf("%s %s %.2f%n", result, test, (System.nanoTime() - begin) / 1e9);
      if (result.equals("PASS")) {
        passed++;
      } else if (result.equals("FAIL")) {
        failed++;
        for (String line : failure.getTrace().split("\n")) {
          System.out.println("  " + line.trim());
        }
      }
      System.out.flush();
    }
  }
}
